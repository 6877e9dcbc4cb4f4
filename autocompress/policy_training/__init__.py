"""Training of policies that carry over to other networks, in the order in which it happens:

1. `recipe`: one YAML file says which networks, data, tasks and settings a policy is trained with.
2. `zoo`: the networks of the recipe are trained from scratch, once, and kept in the menu cache.
3. `episodes`: each network is explored in each task: plans are evaluated under budgets that are drawn at
   random. `episode_files` keeps these episodes on disk, so a training that was killed goes on where it was.
4. `fitting`: one policy is fitted to the episodes of all networks and tasks.
5. `training`: calls all of the above, and writes the policy (`autocompress.policies.files`) with a record of
   how it was made.
6. `evaluation`: measures a finished policy on networks that it was not trained on.
"""
