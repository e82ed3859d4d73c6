"""What was found, for readers: verdicts on the claims, the HTML and W&B reports, the table of runs, the costs."""
