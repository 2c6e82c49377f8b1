// Only in the library for coverage: writes gcov's counters to their files.

extern "C" void __gcov_dump();

extern "C" void emulator_write_counters() { __gcov_dump(); }
