"""What there is: methods, models, data sets, configurations and others, a record for each."""
