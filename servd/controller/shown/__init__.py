"""What people see of it, in the words of either release: computed from the goal and the facts, never stored. Pure, as `plan`.

Imports `controller.plan` and what that imports. Used by `controller`.
"""
