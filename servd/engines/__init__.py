"""Other engines that the same code and the same document run on, once one machine is not enough, and the commands that know
them.

Imports everything below: documents, the verbs of the command line, what builds an application. Used by `servd.cli` alone.
"""
