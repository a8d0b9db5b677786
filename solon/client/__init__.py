"""Clients of Solon's services, and the messages that they exchange.

    client = FeedbackClient("http://127.0.0.1:8100", key="...")
    client.preferences([Compared(messages=[...], first="hello", second="go away")])

May import: `solon.verdicts`.
"""

from solon.client.feedback import AsyncFeedbackClient, FeedbackClient, ServiceError
from solon.client.wire import Answered, Compared, Preference, Revised, Score, Scored, Turn

__all__ = [
    "Answered", "AsyncFeedbackClient", "Compared", "FeedbackClient", "Preference", "Revised", "Score", "Scored",
    "ServiceError", "Turn",
]  # fmt: skip
