"""AI feedback: from a constitution and a judge to a label that may train."""
