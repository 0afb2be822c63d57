/* Everything that a policy may use of the host. */
#include "portcullis.h"

void decide(const request *asked, answer *to) {
    optional_bytes value;
    entry_list found;
    (void)asked;
    data_get("name", 4, &value);
    data_entries("n", 1, 0, "", 0, 10, &found);
    metric_add("looked-up", 9, 2);
    log_line(LOG_WARN, "a line", 6);
    if (!value.is_some || found.len != 1 || now() != 57 || random_number() == random_number()) {
        return fail(to, TEXT("host"), TEXT("not as expected"));
    }
    deny(to, 403, (text){(const char *)value.some.at, value.some.len});
}
