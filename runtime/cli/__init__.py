"""Command line of `drawloom`. Commands import what they need when they run.

May import everything; nothing imports it.
"""
