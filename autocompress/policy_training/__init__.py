"""Training of policies that carry over to other networks, in the order in which it happens:

1. `recipe`: one YAML file says which networks, data, tasks and settings a policy is trained with.
2. `zoo`: the networks of the recipe are trained from scratch, once, and kept in the menu cache.
3. `experience`: plans of each network are evaluated in each task, under budgets that are drawn at random.
   `experience_files` keeps what was measured on disk, so a training that was killed goes on where it was.
4. `lessons`: an expert that has seen all these evaluations plans under each budget.
5. `imitation`: a policy learns the expert's labels, layer by layer in the environment.
6. `reinforcement`: the policy goes on to learn from outcomes, by masked PPO in the environment.
7. `training`: calls all of the above, and writes the policy (`autocompress.policies.files`) with a record of
   how it was made.
8. `evaluation`: measures a finished policy on networks that it was not trained on.
"""
