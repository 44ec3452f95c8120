"""The loop: observe, plan, act, observe again."""
