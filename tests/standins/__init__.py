"""Stand-ins for engines, judges and learner: `workers` are the classes, `roles` puts them into a run."""
