"""Policies that are trained once, on a zoo of networks, and reused on networks that they have never seen.

`network` is the policy itself, `files` reads and writes it, `use` asks it for a plan at the beginning of a
search, and `stable_baselines` makes one of an agent of Stable-Baselines3. Policies are trained in
`autocompress.policy_training`.
"""
