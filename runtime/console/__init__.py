"""Show programs to people: lines and tables, timelines, plots. May import the store."""
