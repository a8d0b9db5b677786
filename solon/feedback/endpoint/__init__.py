"""Judges behind an OpenAI-compatible endpoint: requests with retries, limits and prices, and parsing of replies."""
