"""AMC, HAQ, Galen and ReLeQ as searchers, each with its own state, action, wall, noise and reward.

Every module says what follows the paper or the released code, and what differs; docs/published_agents.md sums
it up.
"""
