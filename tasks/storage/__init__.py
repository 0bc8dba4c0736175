"""Study folders and data at any fsspec location: a local working copy, and what goes up and down when.

A stage works on local files. For a study at a URL these are a working copy in this machine's cache:
`study.pull` brings what is new before a stage, `study.publish_stage` brings up what it made, outputs first and the
manifest last. For a local study the working copy is the study folder itself, and both do nothing.
"""
