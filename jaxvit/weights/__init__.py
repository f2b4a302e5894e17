"""Published weights: reads files of other projects and maps their arrays onto the models of this one."""
