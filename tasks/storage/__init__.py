"""Where things lie: files, a study's folder, and locations at any fsspec URL with their local working copies.

A stage works on local files. For a study at a URL these are a working copy in this machine's cache: `transfer.pull`
brings what is new before a stage, `transfer.publish_stage` brings up what it made, outputs first and the manifest
last. For a local study the working copy is the study folder itself, and both do nothing.
"""
