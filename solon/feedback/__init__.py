"""AI feedback: from a constitution and a judge to a label that may train. Here lies what the rooms below share; start
with `judging`, the border that every judge keeps, then `labeler`."""
