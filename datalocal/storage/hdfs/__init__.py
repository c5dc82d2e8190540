"""HDFS behind the same seam as the nodes' folders: block locations by WebHDFS, bytes by hdfs-native or libhdfs."""
