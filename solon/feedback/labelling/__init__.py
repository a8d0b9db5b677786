"""Labels a data set in files: reads rows, writes missing answers, labels groups and stores the labels as preferences;
it can be stopped and resumed at any moment. Start with `label_run`."""
