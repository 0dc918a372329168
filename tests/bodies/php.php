<?php
// What PHP reads of a request's body in the field that X-Field names, for tests/bodies/check: run as the router of
// "php -S". Answers "=VALUE" in Latin-1's bytes, or "Absent".
$field = base64_decode($_SERVER['HTTP_X_FIELD']);
parse_str(urlencode($field), $wanted);
$found = $_POST;
while (is_array($wanted)) {
    $key = array_key_first($wanted);
    // Of a list, the first element that has the rest.
    $found = is_array($found) && array_key_exists($key, $found) ? $found[$key] : null;
    $wanted = $wanted[$key];
}
header('Content-Type: application/octet-stream');
echo is_string($found) ? "=$found" : 'Absent';
