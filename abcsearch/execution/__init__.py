"""Where evaluations run: anything that is a `concurrent.futures.Executor`. `serial` is this process."""
