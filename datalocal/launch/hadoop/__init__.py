"""HDFS daemons for clusters that datalocal brings up: jars by pinned coordinates, a configuration, commands, readiness."""

from datalocal.launch.hadoop.conf import Addresses, write_conf
from datalocal.launch.hadoop.daemons import Daemon, command, wait_until_ready
from datalocal.launch.hadoop.jars import class_path, missing

__all__ = ["Addresses", "Daemon", "class_path", "command", "missing", "wait_until_ready", "write_conf"]
