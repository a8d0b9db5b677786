"""Selects items to label when labels are expensive, and corrects estimates for the selection. Start with `policy`;
`worth` has the criteria, `estimators` the corrections."""
