"""What many tests share: data, networks, commands, clusters, and readers of the files of a run."""
