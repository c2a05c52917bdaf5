"""Run the same programs under two policies and show the difference."""
