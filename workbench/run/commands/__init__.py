"""The commands of the command line, a module a group: functions whose arguments are the options. Everything heavy is imported inside them."""
