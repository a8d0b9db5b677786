"""Judges behind an OpenAI-compatible endpoint: requests with retries, limits and prices, and how replies are read."""
