"""The parts that Shuoshu's commands share, each file a noun."""
