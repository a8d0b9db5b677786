"""Networks beside the policy: the critic of PPO, reward models, small judges.

Each module has one network, and how it is loaded, saved and called. `learners.objectives` has the training of the
networks.
"""
