// What Python asks when it loads the library: the level and the sources that this one was built from.
#include "map.h"

SHARED(Operand)

// said by setup.py
extern "C" __attribute__((visibility("default"))) const char *regard_built() { return REGARD_BUILT; }
