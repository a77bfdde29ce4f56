"""What advantage estimators read: beliefs and rewards."""
