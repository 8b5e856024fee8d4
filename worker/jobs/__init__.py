"""The vocabulary that api and worker share: spec, state, errors, locations and the store's Protocol."""
