-- The time, and which run of Redis this is. The first part of every script. Only functions.

-- Microseconds since 1970: whole numbers below 2^53, which a double represents exactly. With 0 the time is Redis' own; tests inject theirs.
local function clock(injected)
  if injected > 0 then return injected end
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000000 + tonumber(time[2])
end

-- Changes when Redis restarts and when a replica takes over. Its data may then be older than answers that were already given.
local function run_id()
  return string.match(redis.call('INFO', 'server'), 'run_id:(%x+)')
end

-- All digits of a whole number; `..` and tostring print only 14 of them.
local function digits(n)
  return string.format('%.0f', n)
end
