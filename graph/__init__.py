"""Prediction of what the programs of an agent do next, learned from finished ones.

`execution_graph.py` puts the parts together. `declared_graph.py` runs agents that are written as a
graph. Imports the leaf only.
"""
