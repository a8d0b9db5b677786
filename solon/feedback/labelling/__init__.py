"""Labels for a data set in files: rows read, answers written where they lack, groups labelled, and the labels kept as
preferences, stopped and started again at any moment. Start with `label_run`."""
