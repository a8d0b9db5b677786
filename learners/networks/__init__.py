"""Networks beside the policy: the critic of PPO, reward models, small judges.

Each module has one network, how it is loaded and saved, and how it is asked. How a network is trained is in
`learners.objectives`.
"""
