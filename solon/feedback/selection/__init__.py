"""Which items are worth a label when labels are dear, and how to reckon with the chosen ones without bias. Start with
`selection`; `worth` says what it draws by, `estimators` what follows from the draw."""
