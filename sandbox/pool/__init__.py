"""Keep environments ready before they are asked for, and put them aside."""
