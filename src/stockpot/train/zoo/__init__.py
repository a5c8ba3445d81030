"""Zoo-Tuning: models that share no start, adapted to one task together and folded into one."""
