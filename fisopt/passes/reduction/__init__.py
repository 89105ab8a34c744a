"""What TokenReduction is made of: schedules, tiers, matched sides, reduced blocks."""
