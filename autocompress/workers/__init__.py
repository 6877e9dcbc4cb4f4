"""Workers: many tasks at once, in processes of this machine or as tasks of a Ray cluster.

`tasks.run_tasks` hands tasks out, gives a task of a dead worker to another one, and yields what comes back. Where the
work is done is an `Executor`: `processes.Processes`, or `ray_tasks.RayTasks` for a cluster.
"""
