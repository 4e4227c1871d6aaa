"""Work moved inside a service: threads, executors, timers, tasks, processes, queues. The context is the job's."""
