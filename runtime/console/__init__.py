"""Show programs to people: tables, timelines and plots. May import the store."""
