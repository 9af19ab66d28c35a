"""What happens when things break: kills, cuts, floods, nonsense."""
