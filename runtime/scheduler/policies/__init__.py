"""Hold the policies: drawloom, composed of parts, and its rivals, one file each. May import the
scheduler."""
