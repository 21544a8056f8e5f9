#!/bin/sh
# Run a payload, and its Validationcommand where it succeeds: validated.sh VALIDATION PROGRAM [ARGUMENT…]
# VALIDATION may be empty.  Ends with the payload's exit code, or with 217 where the validation refuses (ERROR_V),
# takes more than 300 seconds (ERROR_VT) or cannot be run (ERROR_VN), as `jobagent run` does.
validation=$1
shift
for program in "$validation" "$1"; do
    case $program in ./*) [ -f "$program" ] && chmod u+x "$program" ;; esac
done

"$@" || exit
[ -n "$validation" ] || exit 0

timeout 300 "$validation"
case $? in
    0) exit 0 ;;
    124) state="ERROR_VT: $validation took more than 300 s" ;;
    126 | 127) state="ERROR_VN: $validation cannot be run" ;;
    *) state="ERROR_V: $validation refused the result" ;;
esac
echo "jobagent: ValidationFailed: $state" >&2
exit 217
