"""Reach environments on other machines over an MQTT broker."""
