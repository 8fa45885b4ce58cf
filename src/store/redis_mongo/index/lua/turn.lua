-- Tenants whose turn it is to be read from MongoDB, as many of each line as it has room for: they are the caller's for five seconds.
-- ARGV: now, lines, depth.
-- Gives: epoch, then for each: line, tenant, how many to add, how many ids of the line are in its stream already.
even_when_full()
local now, lines, depth = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local name, is_open = epoch()
if not is_open then return {name or ''} end
local MOST, PATIENCE = 16, 5000
local answer = {name}
for line = 0, lines - 1 do
  wake(line, now)
  local left, tenants = waiting(line), {}
  local room = depth - left
  while is_low(left, depth) and #tenants < math.min(MOST, room) do
    local next_one = redis.call('ZPOPMIN', of(line, 'due'))[1]
    if not next_one then break end
    local until_ms = rests(line, next_one, now)
    if until_ms then
      sleep(line, next_one, number(until_ms))
    else
      redis.call('ZADD', of(line, 'reading'), number(now + PATIENCE), next_one)
      tenants[#tenants + 1] = next_one
    end
  end
  for _, tenant in ipairs(tenants) do
    answer[#answer + 1] = tostring(line)
    answer[#answer + 1] = tenant
    answer[#answer + 1] = tostring(math.ceil(room / #tenants))
    answer[#answer + 1] = tostring(redis.call('XLEN', of(line, 'jobs')))
  end
end
return answer
