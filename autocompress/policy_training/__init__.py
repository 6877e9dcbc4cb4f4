"""Training of policies: a zoo of networks, episodes on each of them, and the fit of a policy to these."""
