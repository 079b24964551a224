"""The rooms of the package, from the top: each imports only what stands below it."""

ROOMS = (
    *("cli", "app", "gallery", "comparison", "costs", "pictures", "maps", "insertion", "networks", "mechanisms", "ops"),
    *("registry", "layers", "base"),
)
